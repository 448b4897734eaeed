"""Regions that can be searched: a hit is a picture and a box in it."""
