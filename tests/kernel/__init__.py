"""What tests of kernel-bound storage share: the features they need, and storage to test on."""
