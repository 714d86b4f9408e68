// A client of Postgres, as far as is needed to hold on to a connection.
import net from "node:net";

export class Client {
  /// Logs in at `address` (host:port) as `app`.
  static async connect(address, app) {
    const at = address.lastIndexOf(":");
    const client = new Client();
    client.app = app;
    client.socket = net.connect(Number(address.slice(at + 1)), address.slice(0, at));
    client.read = Buffer.alloc(0);
    client.closed = false;
    client.socket.on("data", (data) => { client.read = Buffer.concat([client.read, data]); client.wake?.(); });
    client.socket.on("close", () => { client.closed = true; client.wake?.(); });
    client.socket.on("error", () => {});
    const words = ["user", "bench", "database", "bench", "application_name", app, ""].map((word) => Buffer.from(word + "\0"));
    const version = Buffer.from([0, 3, 0, 0]);
    client.socket.write(framed(Buffer.concat([version, ...words])));
    await client.untilReady();
    return client;
  }

  /// Sends one statement and waits for its end.
  async query(sql) {
    this.send(sql);
    await this.untilReady();
  }
  send(sql) {
    this.socket.write(Buffer.concat([Buffer.from("Q"), framed(Buffer.from(sql + "\0"))]));
  }
  /// Reads up to ReadyForQuery; throws what the server says if that is an error.
  async untilReady() {
    for (;;) {
      while (this.read.length >= 5 && this.read.length >= 1 + this.read.readUInt32BE(1)) {
        const end = 1 + this.read.readUInt32BE(1);
        const [tag, body] = [String.fromCharCode(this.read[0]), this.read.subarray(5, end)];
        this.read = this.read.subarray(end);
        if (tag === "E") throw new Error(body.toString().replaceAll("\0", " "));
        if (tag === "Z") return;
      }
      if (this.closed) throw new Error(`${this.app} was disconnected`);
      await new Promise((wake) => { this.wake = wake; });
    }
  }
  close() {
    this.socket.destroy();
  }
}

function framed(body) {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length + 4);
  return Buffer.concat([length, body]);
}
