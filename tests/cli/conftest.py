"""Commands that read photographs need OpenCV: without it their tests are left out."""

import importlib.util

NEED_OPENCV = ["test_cli.py", "test_crf_search.py", "test_images.py", "test_refine.py"]
collect_ignore = [] if importlib.util.find_spec("cv2") else NEED_OPENCV
