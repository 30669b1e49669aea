"""Steps on a device that works while the host prepares the next one.

What a step needs from the host goes over in one copy; what one step gives to the next (the tokens it sampled) never
leaves the device in between. Everything runs on CPU tensors too, where tests compare it with plain steps.
"""
