"""
The modules of `modeling_mmemo` that need neither torch nor transformers, as `mmemo.core.recording_mmemo` and so on.

They lie in `modeling_mmemo`, whence they travel to the Hub with a model. Importing them from there would import torch,
as that package registers itself with `transformers`; from here it does not.
"""

from mmemo.graph import package_folder


__path__ = [str(package_folder())]
