"""Public operations on torch tensors: arguments checked, autograd and torch.compile supported."""
