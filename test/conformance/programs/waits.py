# Threads wait in accept while signals come to their process. Each signal is taken once, and a thread that
# takes none sees nothing of it.
import functools, os, select, signal, socket, threading, time

say = functools.partial(print, flush=True)
taken = {signal.SIGUSR1: 0, signal.SIGUSR2: 0}
failed = set()

def wait():
    s = socket.create_server(("127.0.0.1", 0))
    while True:
        try:
            s.accept()
        except OSError as e:
            failed.add(str(e))

def take(sig, frame):
    taken[sig] += 1

for sig in taken:
    signal.signal(sig, take)
for _ in range(8):
    threading.Thread(target=wait, daemon=True).start()
time.sleep(0.1)

# SIGUSR1 is the main thread's, which waits for its child: there is always one about to be taken.
if os.fork() == 0:
    end = time.time() + 1
    while time.time() < end:
        os.kill(os.getppid(), signal.SIGUSR1)
    os._exit(0)
os.wait()
say("the main thread's:", taken[signal.SIGUSR1] > 100, sorted(failed))

# SIGUSR2 is for those who wait: the C handler runs in one of them, and tells the pipe.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
told, tell = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(tell)
for _ in range(10):
    os.kill(os.getpid(), signal.SIGUSR2)
    select.select([told], [], [], 10)
    say("another's:", os.read(told, 10))
say(sorted(failed))
os._exit(0)
