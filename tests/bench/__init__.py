"""Speed and memory, beside floors measured in the same run: `python -m tests.bench`."""
