// A model for pages without a notebook: values, events, and whoever listens to them, as anywidget has them.

class LocalModel {
  constructor(facts, state = {}) {
    Object.assign(this, { values: { facts, state }, heard: {} });
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    this.tell(`change:${name}`);
  }

  save_changes() {}

  on(event, hear) {
    (this.heard[event] ??= new Set()).add(hear);
  }

  off(event, hear) {
    this.heard[event]?.delete(hear);
  }

  tell(event, ...words) {
    for (const hear of this.heard[event] ?? []) hear(...words);
  }
}
