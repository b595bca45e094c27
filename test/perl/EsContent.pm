# EsContent.pm
#	  What a database with a log holds, to compare it with that of another.
#
#	use EsContent;
#	is_deeply(content($copy, 'db'), content($original, 'db'), '...');

package EsContent;

use strict;
use warnings;

use Exporter qw(import);
our @EXPORT = qw(content catalog);

# Tables that are not part of what is to be restored: what is settled and
# announced comes anew, and the identity is what tells a copy from the original.
my %left_out = map { $_ => 1 } qw(es.settled es.announced es.identity);

# The rows of every table of the extension, and of others given by name.
sub content
{
	my ($node, $database, @tables) = @_;
	my %content;

	push @tables, split /\n/, $node->safe_psql($database, q{
		SELECT c.oid::regclass FROM pg_depend d
		  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'es'
		  JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'r' AND c.relpersistence = 'p'
		 WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' ORDER BY 1});
	foreach my $table (grep { !$left_out{$_} } @tables)
	{
		$content{$table} = [ split /\n/, $node->safe_psql($database,
				qq{SET TimeZone = 'UTC'; SELECT t::text FROM $table t ORDER BY 1}) ];
	}
	return \%content;
}

# What the extension has put into the catalogs, in words that do not depend on
# oids or on the order in which it got there.
sub catalog
{
	my ($node, $database) = @_;
	my $words = $node->safe_psql($database, q{
		SET search_path = '';
		WITH members AS (
			SELECT d.classid, d.objid FROM pg_catalog.pg_depend d
			  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'es'
			 WHERE d.deptype = 'e'
		), relations AS (
			SELECT c.* FROM members m JOIN pg_catalog.pg_class c ON c.oid = m.objid
			   AND m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
		), functions AS (
			SELECT p.* FROM members m JOIN pg_catalog.pg_proc p ON p.oid = m.objid
			   AND m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
		)
		SELECT 'object: ' || pg_catalog.pg_describe_object(classid, objid, 0) || ' -- ' || coalesce(
			   pg_catalog.obj_description(objid, classid::pg_catalog.regclass::pg_catalog.name), '') AS words
		  FROM members
		UNION ALL
		SELECT 'column: ' || r.oid::pg_catalog.regclass || '.' || a.attname || ' ' ||
			   pg_catalog.format_type(a.atttypid, a.atttypmod) ||
			   CASE WHEN a.attnotnull THEN ' not null' ELSE '' END ||
			   ' collation ' || a.attcollation || ' number ' || a.attnum || ' default ' ||
			   coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '-') || ' -- ' ||
			   coalesce(pg_catalog.col_description(r.oid, a.attnum), '')
		  FROM relations r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
		  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
		 WHERE a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT 'relation: ' || oid::pg_catalog.regclass || ' ' || relkind::text || relpersistence::text ||
			   ' ' || coalesce(reloptions::text, '') || ' ' || relrowsecurity || ' ' || coalesce(
			   (SELECT pg_catalog.string_agg(a::text, ',' ORDER BY a::text) FROM pg_catalog.unnest(
			   coalesce(relacl, pg_catalog.acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a), '')
		  FROM relations
		UNION ALL
		SELECT 'index: ' || pg_catalog.pg_get_indexdef(i.indexrelid)
		  FROM relations r JOIN pg_catalog.pg_index i ON i.indrelid = r.oid
		UNION ALL
		SELECT 'constraint: ' || r.oid::pg_catalog.regclass || ' ' || c.conname || ' ' ||
			   pg_catalog.pg_get_constraintdef(c.oid)
		  FROM relations r JOIN pg_catalog.pg_constraint c ON c.conrelid = r.oid
		UNION ALL
		SELECT 'trigger: ' || pg_catalog.pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
		  FROM relations r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid
		 WHERE NOT t.tgisinternal
		UNION ALL
		SELECT 'view: ' || oid::pg_catalog.regclass || ' ' || pg_catalog.pg_get_viewdef(oid)
		  FROM relations WHERE relkind = 'v'
		UNION ALL
		SELECT 'sequence: ' || s.seqrelid::pg_catalog.regclass || ' ' || s.seqtypid || ' ' ||
			   pg_catalog.concat_ws(' ', s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
		  FROM relations r JOIN pg_catalog.pg_sequence s ON s.seqrelid = r.oid
		UNION ALL
		SELECT 'function: ' || pg_catalog.pg_get_functiondef(oid) || ' ' || coalesce(
			   (SELECT pg_catalog.string_agg(a::text, ',' ORDER BY a::text) FROM pg_catalog.unnest(
			   coalesce(proacl, pg_catalog.acldefault('f', proowner))) a), '')
		  FROM functions
		UNION ALL
		SELECT 'dumped: ' || t.oid::pg_catalog.regclass || ' ' || coalesce(t.condition, '')
		  FROM pg_catalog.pg_extension e,
			   ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition))
				   t (oid, condition)
		 WHERE e.extname = 'es'
		ORDER BY 1});

	# The words may have line feeds.
	my $kinds = join('|', qw(object column relation index constraint trigger view sequence
		function dumped));
	return [ split /\n(?=(?:$kinds): )/,
		$words ];
}

1;
