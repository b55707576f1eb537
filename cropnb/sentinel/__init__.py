"""From Sentinel products to the acquisitions of a region folder: search, download, Sentinel-1 and Sentinel-2."""
