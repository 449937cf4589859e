use serde_json::json;

use super::*;

fn run(source: &str) -> Result<Value, String> {
    let names: BTreeMap<String, Sort<'_>> = [("self".to_owned(), Sort::Dyn)].into();
    let (program, _) = Program::compile(source, &names).map_err(|err| err.to_string())?;
    let object = json!({
        "a": 1, "b": [1, 2, 3], "m": {"x": 1, "y": 2}, "s": "hello", "d-x": 5, "f": 1.5,
        "list": [{"name": "p", "n": 1}, {"name": "q"}],
    });
    let names = [("self".to_owned(), Variable::Value(Value::of_json(&object)))].into();
    let mut budget = Budget { left: COST_PER_CALL };
    program.eval(names, None, &mut budget).map_err(|err| err.to_string())
}

#[track_caller]
fn check(source: &str) {
    assert_eq!(run(source), Ok(Value::Bool(true)), "{source}");
}

#[track_caller]
fn wrong(source: &str, why: &str) {
    let found = run(source).unwrap_err();
    assert!(found.contains(why), "{source}: {found}");
}

#[test]
fn expressions_come_to_what_the_language_says() {
    for source in [
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && -7 % 3 == -1 && 2u + 3u == 5u",
        "1 == 1.0 && 1u == 1 && 2 > 1.5 && !(1 < 0.5)",
        "-9223372036854775808 < 0 && 0x10 == 16 && 1e3 == 1000.0 && .5 == 0.5",
        "'a' + \"b\" == 'ab' && r'\\d' == '\\\\d' && '''x'y''' == \"x'y\" && '\\u00e9' == 'é'",
        "b'abc' == bytes('abc') && size(b'é') == 2 && size('é') == 1",
        "self.a == 1 && self['a'] == 1 && self.?zzz.orValue(4) == 4 && self.?a.hasValue()",
        "has(self.a) && !has(self.zzz) && self.d__dash__x == 5 && self.`d-x` == 5",
        "self.b.all(x, x > 0) && self.b.exists(x, x == 2) && self.b.exists_one(x, x > 2)",
        "self.b.map(x, x * 2) == [2, 4, 6] && self.b.filter(x, x > 1) == [2, 3]",
        "self.b.map(x, x > 1, x * 10) == [20, 30] && self.m.all(k, k in ['x', 'y'])",
        "self.b.all(i, v, v == i + 1) && self.m.transformMap(k, v, v + 1) == {'x': 2, 'y': 3}",
        "self.m.transformList(k, v, k) == ['x', 'y'] && self.b.transformList(i, v, i > 0, v) == [2, 3]",
        "self.m.transformMapEntry(k, v, {v: k}) == {1: 'x', 2: 'y'}",
        "cel.bind(t, self.a + 1, t * t) == 4 && (self.a > 0 ? 'y' : 'n') == 'y'",
        "false && self.zzz == 1 || true || self.zzz == 1 && true",
        "2 in self.b && !('z' in self.m) && 'x' in self.m && [1, [2]] == [1, [2]]",
        "[?optional.none(), ?optional.of(1)] == [1] && {?'a': optional.none()} == {}",
        "self.s.startsWith('he') && self.s.endsWith('lo') && self.s.contains('ell')",
        "self.s.matches('^h.*o$') && self.s.find('l+') == 'll' && 'a1b22'.findAll('[0-9]+') == ['1', '22']",
        "'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b' && ' x '.trim() == 'x'",
        "'tacocat'.indexOf('c') == 2 && 'tacocat'.lastIndexOf('c') == 4 && 'abc'.substring(1, 2) == 'b'",
        "'abc'.charAt(3) == '' && 'aXbX'.replace('X', '-', 1) == 'a-bX' && 'aB'.lowerAscii() == 'ab'",
        "'%s is %d and %.2f'.format(['x', 3, 1.5]) == 'x is 3 and 1.50' && '%s'.format([[1, 2]]) == '[1, 2]'",
        "[1, 2, 3].sum() == 6 && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].isSorted()",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && [1, 1, 2].distinct() == [1, 2]",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1]) && !sets.intersects([1], [2])",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('5m') && !isQuantity('x')",
        "quantity('500m').add(quantity('1500m')).compareTo(quantity('2')) == 0 && quantity('3').asInteger() == 3",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('::ffff:1.2.3.4') && ip('127.0.0.1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.2.3.4') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "!cidr('10.0.0.0/8').containsIP(ip('11.0.0.1')) && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "url('https://u@h:80/p/a?k=v').getHost() == 'h:80' && url('https://h:80/p').getPort() == '80'",
        "url('https://h/p?k=v&k=w').getQuery() == {'k': ['v', 'w']} && isURL('https://h') && !isURL('x')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').compareTo(semver('1.0.0')) == -1",
        "timestamp('2026-01-02T03:04:05Z').getHours() == 3 && timestamp('2026-01-02T03:04:05Z').getDayOfWeek() == 5",
        "timestamp('2026-01-02T03:04:05Z') - timestamp('2026-01-02T03:04:00Z') == duration('5s')",
        "duration('1h30m').getMinutes() == 90 && string(duration('1.5s')) == '1.5s' && duration('90s') > duration('1m')",
        "int('5') == 5 && string(5) == '5' && double('1.5') == 1.5 && type(1) == int && type('') == string",
        "self.list.exists(x, has(x.n) && x.n == 1) && self.list.map(x, x.name) == ['p', 'q']",
        "optional.of(3).optMap(x, x + 1).value() == 4 && [1, 2].map(x, x).size() == 2",
        "Object{spec: Object.spec{x: 1}} == {'spec': {'x': 1}}",
        "[{'a': 2}, {'a': 1}].sortBy(x, x.a)[0].a == 1 // and a comment",
    ] {
        check(source);
    }
}

#[test]
fn what_goes_wrong_is_said() {
    wrong("1 +", "Syntax error: mismatched input '<EOF>'");
    wrong("foo == 1", "undeclared reference to 'foo' (in container '')");
    wrong("self.a.nothing()", "undeclared reference to 'nothing'");
    wrong("1 == 'a'", "found no matching overload for '_==_' applied to '(int, string)'");
    wrong("1 + 1.5 > 0.0", "found no matching overload for '_+_' applied to '(int, double)'");
    wrong("self.zzz", "no such key: zzz");
    wrong("1 / (self.a - 1) == 0", "division by zero");
    wrong("9223372036854775807 + self.a > 0", "integer overflow");
    wrong("self.b[7] == 1", "index out of bounds: 7");
    wrong(
        "[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6,7,8,9].all(c, \
         [0,1,2,3,4,5,6,7,8,9].all(d, [0,1,2,3,4,5,6,7,8,9].all(e, a + b + c + d + e >= 0)))))",
        "actual cost limit exceeded",
    );
    wrong(&"(".repeat(200), "recursion limit");
    wrong(&"!".repeat(20_000), "recursion limit");
}

#[test]
fn any_text_is_an_expression_or_none() {
    bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
        drop(run(&String::from_utf8_lossy(bytes)));
    });
    let words = [
        "self", ".", "a", "(", ")", "[", "]", "1", "+", "&&", "?", ":", "'x'", "map", ",", "in",
        "-",
    ];
    bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
        let text: Vec<&str> =
            bytes.iter().map(|byte| words[usize::from(*byte) % words.len()]).collect();
        drop(run(&text.join(" ")));
    });
}
