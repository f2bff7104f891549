"""What is known about TensorRT and the Jetson boards, as functions of text: nothing here talks to a board.

`versions` says what a TensorRT can do, `trtexec` writes its command lines and reads what it prints and exports,
`failures` explains why it failed, `state` reads the board's clocks, power and temperatures.
"""
