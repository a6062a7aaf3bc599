"""Ablations and hyperparameter searches for multimodal knowledge distillation, on Ray."""

__version__ = "0.1.0"
