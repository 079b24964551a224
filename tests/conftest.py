"""One thread for each test process: they run side by side."""

import torch

torch.set_num_threads(1)
