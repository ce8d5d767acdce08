// A clock that a test moves.

export class Clock {
  #time = 0;
  #sleeping = [];
  now = () => this.#time;
  sleep = (seconds) => new Promise((resolve) => {
    this.#sleeping.push({ until: this.#time + seconds, resolve });
  });
  random = () => 0;

  /** Until `done`, move the clock on whenever all of the `active` requests wait for it. */
  async run(active, done) {
    while (!done()) {
      if (this.#sleeping.length && this.#sleeping.length === active()) {
        this.#sleeping.sort((a, b) => a.until - b.until);
        const { until, resolve } = this.#sleeping.shift();
        this.#time = until;
        resolve();
      }
      await new Promise(setImmediate);
    }
  }
}
