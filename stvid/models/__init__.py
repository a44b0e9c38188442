"""Plain nn.Modules under one contract: float B x C x T x H x W (and lengths) in, logits B x K out."""
