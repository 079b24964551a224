"""The few kernels under the ops: reduce, affine and pick, in C++ (`cpu`) and in Triton (`triton`)."""
