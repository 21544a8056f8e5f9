"""Pilots and what they become: compute elements, the factory, the glide-in."""
