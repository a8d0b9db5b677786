"""Every architecture through every stage of Solon, with tiny random models: `python -m tests.e2e.models`."""
