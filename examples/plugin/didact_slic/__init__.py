"""A custom loss as a package: `pip install examples/plugin`, then `didact run slic`."""
