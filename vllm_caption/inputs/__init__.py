"""Where items come from: JSON manifests."""
