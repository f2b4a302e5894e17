"""Host-side data and on-device augmentation."""
