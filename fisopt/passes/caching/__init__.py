"""The parts of `StepCache`."""
