// The model of the live view: asks the local server that the page came from, which computes exact values.

class LiveModel extends LocalModel {
  async send(question) {
    const { id, parts } = question;
    try {
      const answer = await fetch("look", { method: "POST", body: JSON.stringify(question), headers: { "Content-Type": "application/json" } });
      if (!answer.ok) throw new Error((await answer.text()) || `the server answered ${answer.status}`);
      const bytes = await answer.arrayBuffer(), length = new DataView(bytes).getUint32(0, true);
      const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
      let start = 4 + length;
      const buffers = parts.map((_, place) => {
        const view = new DataView(bytes, start, head.bytes[place]);
        start += head.bytes[place];
        return view;
      });
      this.tell("msg:custom", { ...head, id }, buffers);
    } catch (error) {
      this.tell("msg:custom", { id, failed: error instanceof TypeError ? "attrace view no longer runs" : error.message }, []);
    }
  }
}

function live(element) {
  const { facts } = JSON.parse(element.querySelector("[data-facts]").textContent);
  return new LiveModel({ ...facts, links: true });
}
