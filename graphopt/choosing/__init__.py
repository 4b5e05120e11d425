"""Which approximations are kept: limits, what each one costs at the outputs, what is left out, and why."""
