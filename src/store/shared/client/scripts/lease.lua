-- KEYS: 4 lease.
local sealed = redis.call('HGET', KEYS[4], 'sealed') or ''
return {'ok', number(KEYS[4], 'g'), number(KEYS[4], 'refused'),
  math.max(0, number(KEYS[4], 'ends') - now), sealed}
