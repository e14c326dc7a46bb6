"""Where a network comes from: named architectures, checkpoints, ONNX files, factories."""
