"""Plain torch, on any device: slow where it must be, and right."""
