"""OpenVINO IR: all that repedge knows of it."""
