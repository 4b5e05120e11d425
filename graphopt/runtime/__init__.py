"""The runtime behind a small interface: sessions, traces, fidelity, timing and the kernels that ran."""
