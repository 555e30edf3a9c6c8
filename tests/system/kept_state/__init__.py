"""State directories that earlier versions of servd wrote, and the script that makes them."""
