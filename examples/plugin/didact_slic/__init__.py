"""A loss of one's own as a package: `pip install examples/plugin`, then `didact run slic`."""
