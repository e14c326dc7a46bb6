"""ONNX for GPU servers, with Triton's model repository: all that repedge knows of it."""
