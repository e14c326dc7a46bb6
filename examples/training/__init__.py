"""What the training examples share; the scripts beside this folder are run from anywhere."""
