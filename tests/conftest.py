"""One thread for each test process: they run side by side. No deadlines: a busy machine is not a defect."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("regard", deadline=None)
settings.load_profile("regard")
