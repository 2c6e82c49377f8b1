"""Ignores tests of commands that read photographs if OpenCV is not installed."""

import importlib.util

NEED_OPENCV = [
    "test_evaluate.py",
    "test_evaluation_page.py",
    "test_cli.py",
    "test_crf_search.py",
    "test_dataset.py",
    "test_refine.py",
]
collect_ignore = [] if importlib.util.find_spec("cv2") else NEED_OPENCV
