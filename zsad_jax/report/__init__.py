"""What a run shows: tables as text and pictures as PNG bytes. Nothing here touches the disk."""
