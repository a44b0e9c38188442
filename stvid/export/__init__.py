"""A trained model as a file that runs without stvid: ONNX, or a program of torch.export."""
