"""What people look at: terminal, page, dashboard, progress."""
