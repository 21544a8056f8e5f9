"""What a pilot needs on a bare node: its script and the bundle."""
