// consumer.js
//	  A consumer that keeps its own account, in Node with "pg" from npm: it
//	  listens, and reads the log from its own position on.
//
//		node consumer.js CONNINFO CHANNEL LAST_TYPE
//
// Prints position, stream and version of every event, and ends with the first
// one of type LAST_TYPE.  See consumer.c, which does the same.

const os = require('os');
const { Client } = require('pg');

const [conninfo, channel, lastType] = process.argv.slice(2);
const options = Object.fromEntries(
	conninfo.split(' ').map(o => o.replace(/'/g, '').split('=')));

let position = '0';
let atEnd = false;

// Read all there is.
async function catchUp(client) {
	for (;;) {
		const { rows } = await client.query(
			'SELECT position, stream, version, type FROM es_read($1, 500)', [position]);

		for (const e of rows) {
			console.log(`${e.position} ${e.stream} ${e.version}`);
			position = e.position;
			if (e.type === lastType) {
				atEnd = true;
				return;
			}
		}
		if (rows.length === 0)
			return;
	}
}

// Listen and read until the connection is lost or the last event is here.
async function session() {
	const client = new Client({
		host: options.host, port: options.port,
		database: options.dbname, user: options.user || os.userInfo().username });
	let news = true;
	let lost = null;
	let wake = () => {};

	client.on('notification', () => { news = true; wake(); });
	client.on('error', e => { lost = e; wake(); });
	client.on('end', () => { lost = lost || new Error('connection closed'); wake(); });
	await client.connect();
	try {
		await client.query('LISTEN ' + channel);
		while (!atEnd && !lost) {
			if (!news)
				await new Promise(resolve => { wake = resolve; });
			if (news) {
				news = false;
				await catchUp(client);
			}
		}
	} finally {
		client.end().catch(() => {});
	}
}

async function main() {
	while (!atEnd) {
		try {
			await session();
		} catch (e) {
			// The server is away; a notification may be lost, an event is not.
			// An error with an SQLSTATE is one, but for that of a shutdown.
			if (/^[0-9A-Z]{5}$/.test(e.code) && !e.code.startsWith('57P')
				&& !/^E[A-Z]+$/.test(e.code)) {
				console.error(e.message);
				process.exit(1);
			}
		}
		if (!atEnd)
			await new Promise(resolve => setTimeout(resolve, 100));
	}
}

main().then(() => process.exit(0));
