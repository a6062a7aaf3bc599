"""What every test may count on: one thread, so that nothing spins and bits repeat."""

import torch

torch.set_num_threads(1)
