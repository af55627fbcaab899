"""What the output's file system can do, and what its errors mean."""
