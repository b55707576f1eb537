"""Helpers of the cropnb book."""
