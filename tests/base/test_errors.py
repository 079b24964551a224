"""What errors carry beside their sentence."""

import pickle

from regard.base.errors import ExampleError, UserError


def test_an_error_about_an_example_comes_whole_out_of_another_process():
    error = ExampleError("the dry run failed (TypeError)", "that the model accepts")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "the dry run failed (TypeError): pass an `example` that the model accepts"
    assert (copy.problem, copy.needed) == (error.problem, error.needed)


def test_an_error_keeps_its_subject_apart():
    error = UserError("so it is", subject="tam")
    for kept in (error, pickle.loads(pickle.dumps(error))):
        assert (str(kept), kept.subject, kept.reason) == ("tam: so it is", "tam", "so it is")
    plain = UserError("tam: so it is")
    assert (str(plain), plain.subject, plain.reason) == ("tam: so it is", "", "tam: so it is")
