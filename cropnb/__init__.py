"""Helpers of the cropnb book."""

import os

# Read by TensorFlow when it is imported: by itself it leaves its faster kernels off on many processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
