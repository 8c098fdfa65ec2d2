"""Networks as files, and back.

`files` is the front: `export` writes one of four formats and checks it, `load` reads any of them;
`targets` says where an export may go; `plan` is the folder of model.safetensors and plan.json,
`compressed` its tensors in few bytes, `interchange` the files .onnx and .pt2; `checking` compares what
was written with the network; `quantizing` makes int8 networks.
"""

from abcsearch.exporting.files import Exported as Exported
from abcsearch.exporting.files import export as export
from abcsearch.exporting.files import load as load
from abcsearch.exporting.files import open_export as open_export
