"""Export of trained models to GGUF (llama.cpp) and ONNX, each file checked against the model it came from."""

from stlm_kd.publishing.export.formats import FORMATS, ExportReport, export

__all__ = ["FORMATS", "ExportReport", "export"]
