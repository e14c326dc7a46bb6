"""Networks with heads: detectors, segmenters and few-shot networks, in training form."""
