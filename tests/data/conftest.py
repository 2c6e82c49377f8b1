"""Ignores the tests of files of pictures if OpenCV is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("cv2") else ["test_*.py"]
