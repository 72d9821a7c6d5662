-- KEYS: 4 token.
local value = redis.call('GET', KEYS[4])
local seq, _, kind, user = parse(value or '')
if seq and seq >= number(prefix .. 'h:' .. user, 'g') then
  return {'ok', user, kind, redis.call('PTTL', KEYS[4]), seq}
end
if not value and now < number(meta, 'settles') then return {'unsettled'} end
return {'none'}
