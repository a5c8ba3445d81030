"""Low-rank adapters: reading what PEFT and kohya write, seeing them as checkpoints, writing one."""
